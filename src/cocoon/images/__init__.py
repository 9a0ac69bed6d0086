"""From a stream of layers to bootable blobs: decompression, scanning, EROFS, kernels, publication."""
