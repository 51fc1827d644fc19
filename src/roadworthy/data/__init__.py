"""Images and labels: reading data sets, turning an image into an input tensor, the embedded sample scenes."""
