"""An exported model at work: what its file says, images in, class names out."""
