"""What others call on us: Label Studio's ML backend protocol."""
