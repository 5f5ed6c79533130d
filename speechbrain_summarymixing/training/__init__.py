"""Brain classes, data pipeline and the life of an experiment."""
