/** Where the README's snippet finds the construct: next to itself, as in a user's `lib/`. */
export * from "../../lib/db-setup";
