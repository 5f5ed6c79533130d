"""From manifests and shards to batches: sets, tokens, loading and augmentation."""
