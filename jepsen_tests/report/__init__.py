"""What a run leaves behind: counts, gaps between acknowledgements, a timeline for people."""
