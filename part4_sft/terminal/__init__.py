"""A person at a terminal: screens, keys, and questions answered by single keys."""
