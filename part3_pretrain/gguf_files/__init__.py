"""GGUF files, which llama.cpp and what is built on it read, in and out; the `gguf` package knows the number formats."""
