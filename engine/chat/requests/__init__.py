"""Requests as clients of any server write them, brought to one spelling for both doors."""
