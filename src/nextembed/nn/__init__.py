"""Pure layers and functions: no files, no configuration, no Hugging Face."""
