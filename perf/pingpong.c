/* The floor of a round trip: a Unix stream socket, 80 bytes there and back, nothing else.
   pingpong SOCKET serves clients one process each, forked on accept, until it is killed. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char buffer[4096];
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path || listener < 0) return 2;
    strcpy(address.sun_path, argv[1]);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128)) return 1;
    signal(SIGCHLD, SIG_IGN);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) continue;
        if (fork() == 0) {
            ssize_t got;
            close(listener);
            while ((got = read(client, buffer, sizeof buffer)) > 0)
                if (write(client, buffer, got) != got) break;
            _exit(0);
        }
        close(client);
    }
}
