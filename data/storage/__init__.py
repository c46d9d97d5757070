"""Where blobs lie: one interface, a driver a module, and the suite that every driver passes."""
