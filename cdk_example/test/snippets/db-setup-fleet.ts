/** Where the guide's snippets find the construct: next to themselves, as in a user's `lib/`. */
export * from "../../lib/db-setup-fleet";
