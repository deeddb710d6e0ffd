"""Pictures of the running application and the script that takes them."""
