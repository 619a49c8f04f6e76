"""What is trained: pure init/step/sample records. No I/O, no devices, no flags."""
