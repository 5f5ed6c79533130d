"""Models whose encoders are analysed: exports, SpeechBrain's and Hugging Face's, from folders."""

from pathlib import Path

import torch
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.inference.ASR import EncoderASR, EncoderDecoderASR

from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.inference.sources import find_file
from speechbrain_summarymixing.inference.transcribe import OPTION, kind_of, load_model
from speechbrain_summarymixing.inference.transcripts import BLANK
from speechbrain_summarymixing.inference.trust import check_yaml
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple
from speechbrain_summarymixing.lobes.transducer_search import TransducerSearch
from speechbrain_summarymixing.processes import check_device

EXPORT = ("model.ckpt", "normalizer.ckpt")  # files of this project's


def load_subject(source, device=None, *, trust=False):
    """Loads a model to be analysed.

    Arguments
    ---------
    source : str or Path
        A folder that this project exported, or the hub name of one; a folder of SpeechBrain's
        ``EncoderASR`` or ``EncoderDecoderASR``; or a folder of a speech encoder of Hugging Face.
    device : str or None
        None takes the GPU where there is one.
    trust : bool
        As for `load_model`.

    Returns
    -------
    Recogniser, Classifier or HuggingFaceEncoder

    Raises
    ------
    UserError
        If it is no such model, one that would run code, or there is no such device.
    """
    if device is not None:
        check_device(device)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(source)
    if (folder / "config.json").is_file() and not (folder / "hyperparams.yaml").exists():
        return HuggingFaceEncoder(folder, device)
    file = find_file(source, "hyperparams.yaml", option=OPTION)
    text = file.read_text(encoding="utf-8", errors="replace")
    if not folder.is_dir() or all((folder / name).is_file() for name in EXPORT):
        is_classifier = kind_of(text)[0] == "classify"
        command = "classify" if is_classifier else "transcribe"
        model = load_model(source, device, command=command, trust=trust)
        return Classifier(model) if is_classifier else Recogniser(model)
    if not trust:
        check_yaml(text, file)
    interface = EncoderASR if "decoding_function" in text else EncoderDecoderASR
    try:
        model = interface.from_hparams(source=str(source), run_opts={"device": device})
    except Exception as error:  # of YAML, of what it builds, of torch
        raise UserError(
            f"{OPTION} is {source}, which SpeechBrain's {interface.__name__} cannot load "
            f"({reason_of(error)}): give the folder of a recogniser"
        ) from error
    return Recogniser(model)


class Recogniser:
    """A recogniser of SpeechBrain, whose words are those of greedy search.

    Arguments
    ---------
    model : EncoderDecoderASR or EncoderASR
    """

    def __init__(self, model):
        self.module, hparams = model.eval(), model.hparams
        self.sample_rate = getattr(hparams, "sample_rate", 16000)
        features = getattr(hparams, "compute_features", None)
        self._samples = getattr(features, "samples", 1)  # of a whole frame
        self._head = getattr(hparams, "ctc_lin", None)
        self._search = getattr(hparams, "greedy_search", None)
        if not isinstance(self._search, TransducerSearch):
            self._search = None
        self.has_words = self._head is not None or self._search is not None

    @torch.no_grad()
    def encode(self, waveform, copies=1):
        """Returns the encoder's output (copies, T, D) of a waveform (samples,)."""
        padded = pad_to_multiple(waveform, self._samples).to(self.module.device)
        entered = []
        handle = None
        if isinstance(self.module, EncoderASR) and self._head is not None:  # goes on to CTC's head
            handle = self._head.register_forward_pre_hook(lambda _, x: entered.append(x[0]))
        try:
            lengths = torch.ones(copies, device=padded.device)
            output = self.module.encode_batch(padded.expand(copies, -1), lengths)
        finally:
            if handle is not None:
                handle.remove()
        return entered[0] if entered else output

    @torch.no_grad()
    def words(self, encoded):
        """Returns the text of each encoded utterance (B, T, D)."""
        lengths = torch.ones(len(encoded), device=encoded.device)
        if self._search is not None:
            tokens = self._search(encoded, lengths)[0]
        else:
            log_probs = self._head(encoded).log_softmax(-1)
            tokens = ctc_greedy_decode(log_probs, lengths, blank_id=BLANK)
        return [self.module.tokenizer.decode_ids(list(map(int, one))) for one in tokens]


class Classifier:
    """A model that gives an utterance one class, whose name is all of its words.

    Arguments
    ---------
    model : EncoderClassifier
        With a `PooledEncoder`.
    """

    has_words = True

    def __init__(self, model):
        self.module = model.eval()
        self.sample_rate = model.hparams.sample_rate

    @torch.no_grad()
    def encode(self, waveform, copies=1):
        """Returns the encoder's output (copies, T, D) of a waveform (samples,)."""
        mods, wavs = self.module.mods, waveform.to(self.module.device).expand(copies, -1)
        lengths = torch.ones(copies, device=wavs.device)
        return mods.embedding_model.encode(mods.mean_var_norm(wavs, lengths), lengths)

    @torch.no_grad()
    def words(self, encoded):
        """Returns the class of each encoded utterance (B, T, D)."""
        scores = self.module.mods.classifier(self.module.mods.embedding_model.pool(encoded))
        return self.module.hparams.label_encoder.decode_torch(scores.squeeze(1).argmax(-1))


class HuggingFaceEncoder:
    """A speech encoder of Hugging Face; of Whisper and its like the encoder alone.

    Arguments
    ---------
    folder : Path
        With config.json, weights and preprocessor_config.json.
    device : str

    Raises
    ------
    UserError
        If transformers is missing, or it cannot be loaded.
    """

    has_words = False

    def __init__(self, folder, device):
        try:
            from transformers import AutoFeatureExtractor, AutoModel
        except ImportError as error:
            raise UserError(
                f"{OPTION} is {folder}, a model of Hugging Face, but the package transformers is "
                'not there: pip install "speechbrain-summarymixing[huggingface]"'
            ) from error
        try:
            options = {"local_files_only": True}
            self._features = AutoFeatureExtractor.from_pretrained(folder, **options)
            model = AutoModel.from_pretrained(folder, **options)
        except Exception as error:  # has many kinds
            raise UserError(
                f"{OPTION} is {folder}, which transformers cannot load ({reason_of(error)}): give "
                "a folder with config.json, weights and preprocessor_config.json of a speech "
                "encoder"
            ) from error
        self.module = (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
        self.module.to(device)
        self.sample_rate = self._features.sampling_rate

    @torch.no_grad()
    def encode(self, waveform, copies=1):
        """Returns the encoder's output (copies, T, D) of a waveform (samples,).

        Raises
        ------
        UserError
            If it is shorter than the kernels of the encoder's convolutions.
        """
        inputs = self._features(
            waveform.numpy(), sampling_rate=self.sample_rate, return_tensors="pt"
        )
        name = self.module.main_input_name
        weight = next(self.module.parameters())
        values = inputs[name].to(weight)
        try:
            return self.module(values.expand(copies, *values.shape[1:])).last_hidden_state
        except RuntimeError as error:
            if "Kernel size can't be greater than actual input size" not in str(error):
                raise
            raise UserError(
                f"{len(waveform)} samples are less than a frame of this encoder: give longer audio"
            ) from error
