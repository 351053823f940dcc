"""Pictures for people: results drawn on photographs, and plots."""
