"""Images as the Open Container Initiative defines them: references, manifests, registries, archives.

Sources: opencontainers/image-spec 1.1 (manifest.md, config.md, image-layout.md), distribution-spec 1.1, Docker's
image manifest version 2 schema 2 and its `docker save` format.
"""
