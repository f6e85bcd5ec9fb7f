"""What is published: packages, their manifests and shape laws, the importers, and the store. Knows no torch and no server."""
