"""What chaos.py does to commands of reptk, and how it checks what they leave behind."""
