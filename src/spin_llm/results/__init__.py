"""What was measured, as types; read and written here alone."""
