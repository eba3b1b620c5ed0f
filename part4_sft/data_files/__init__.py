"""People's own files of pairs: the layouts of their entries, and what may be wrong with what they say."""
