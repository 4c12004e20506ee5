"""A path for each row of a batch, or for each segment of its tokens: shared ancestors are held and computed once."""
