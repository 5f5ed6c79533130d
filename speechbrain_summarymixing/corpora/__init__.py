"""One module a corpus: ``prepare(...)`` makes CSV manifests of it."""
