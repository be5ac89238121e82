"""What stages hand on to one another: how it is named, read and written; nothing is computed here."""
