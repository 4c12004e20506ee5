"""What people see at a terminal: tables, fields, trees and verdicts that fit its width."""
