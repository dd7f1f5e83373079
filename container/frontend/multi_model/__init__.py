"""Multi-model endpoints: a whole server for each model, behind one port."""
