"""Preference data: loading, splitting transcripts, making pairs, checking."""
