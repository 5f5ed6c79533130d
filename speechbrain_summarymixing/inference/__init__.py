"""Using trained models: export and transcription."""
