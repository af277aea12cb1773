"""Files of weights that people have: which library's names they use, which timm model they fit, how they fill it."""
