"""Where slices come from: folders of images and the phantom, each a `SliceSource`."""
