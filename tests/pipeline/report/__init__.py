"""What a report shows, read back from its HTML."""
