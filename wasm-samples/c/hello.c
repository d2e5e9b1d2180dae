/* Shows what a container sees of itself, from C: its arguments, its host name, its environment.
 *
 * Usage: hello-c [WORD...]. Exit code 0.
 */
#include <stdio.h>
#include <string.h>

extern char **environ;

int main(int argc, char **argv)
{
    puts("Hello from WebAssembly, in C!");
    for (int i = 0; i < argc; i++)
        printf("args[%d]: %s\n", i, argv[i]);

    char name[256] = "";
    FILE *file = fopen("/etc/hostname", "r");
    if (file != NULL) {
        if (fgets(name, sizeof name, file) != NULL)
            name[strcspn(name, "\n")] = '\0';
        fclose(file);
        printf("hostname: %s\n", name);
    } else {
        perror("hostname");
    }

    for (char **variable = environ; *variable != NULL; variable++)
        printf("env: %s\n", *variable);
    return 0;
}
