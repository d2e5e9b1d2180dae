// A JavaScript command: arguments, environment, files, an exit code.
import { getArguments, getEnvironment } from "wasi:cli/environment@0.2.10";

export const run = {
  run() {
    const name = new Map(getEnvironment()).get("NAME") ?? "nobody";
    console.log(`hello ${name}, ${getArguments().slice(1).join(" ")} from JavaScript`);
  },
};
