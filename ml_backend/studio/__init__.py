"""What we call on Label Studio: its API, labelling configs, annotations, masks and task order."""
