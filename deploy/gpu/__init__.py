"""What `make gpu-check` runs: see `deploy.gpu.check`."""
