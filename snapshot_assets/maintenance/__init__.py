"""An operator's commands on what is published: rollback, pins, verification."""
