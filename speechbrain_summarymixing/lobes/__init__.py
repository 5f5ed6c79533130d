"""SpeechBrain's encoders with an injected token mixer, exact under padding."""
