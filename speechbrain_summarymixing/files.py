"""Files that a kill leaves whole: the old content or the new."""

import os
from pathlib import Path


def write_atomically(path, content):
    """Writes a file, whose folder is made, whole or not at all.

    Arguments
    ---------
    path : str or Path
    content : str or bytes
        Text becomes UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)
