"""Feature values for whoever asks: REST, gRPC and Feast's wire over one read, and the catalogue."""
