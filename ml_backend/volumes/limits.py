"""How large what is read of a volume may be: looked at before memory or disk is taken for it.

A header of a few bytes may claim anything. docs/import.md says these to who brings the files.
"""

from __future__ import annotations

__all__ = [
    "CHUNK_BYTES",
    "HEADER_BYTES",
    "LONGEST_AXIS",
    "SLICE_VOXELS",
    "TEXT_BYTES",
    "UNPACKED_BYTES",
]

SLICE_VOXELS = 1 << 28
"""Of a slice, across whichever axis: 16,384²."""
LONGEST_AXIS = 1 << 20
"""Slices along an axis: each becomes a task."""
CHUNK_BYTES = 8 * SLICE_VOXELS
"""Of a chunk, strip or tile, which is unpacked whole for a part of it: as of the largest slice."""
HEADER_BYTES = 16 << 20
"""What may stand in a NIfTI or AmiraMesh file before its values, and in a sidecar."""
TEXT_BYTES = 1 << 20
"""Of lines that describe a volume: of NRRD, MetaImage, VGI, and logs."""
UNPACKED_BYTES = 16 << 30
"""Of a .nii.gz, or another packed stream, in the temporary folder."""
