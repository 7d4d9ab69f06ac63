"""What a container, a Jetson or Triton needs to run a bundle."""
