"""Images and where they come from: files, folders, labels, and the pixels a model sees."""
