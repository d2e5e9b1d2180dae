package applets

func self() string { return "/.wasilet/toolbox" }
