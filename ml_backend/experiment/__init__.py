"""`nextslice simulate`: which strategy suits a data set, measured where the truth is known."""
