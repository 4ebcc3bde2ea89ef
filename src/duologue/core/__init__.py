"""The method, on the standard library alone: no clock, socket, thread, tensor or model."""
