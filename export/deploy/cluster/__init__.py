"""Manifests for what runs several containers or processes: Kubernetes, KServe, Compose, Ray."""
