"""What asks the services: cli/ is the `gateway` command."""
