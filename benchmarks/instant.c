/* A server that answers at once: what a client costs, without what a server costs or makes it wait for.

   instant

   It listens on a port of its own on the loopback, which it prints, and answers until it is killed. Each command has the
   reply that a client hopes for: each put is stored under a new id, each reserve gets a job of 11 bytes under a new id. It
   remembers nothing, and knows as much of the protocol as the benchmarks say. */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 1024 /* connections at once */
#define JOB \
    "---\nid: %llu\ntube: bench0\nstate: reserved\npri: 1024\nage: 0\ndelay: 0\nttr: 60\ntime-left: 59\nfile: 0\n" \
    "reserves: 1\ntimeouts: 0\nreleases: 0\nburies: 0\nkicks: 0\n"
#define STATS "---\nid: 0123456789abcdef\nversion: \"1.12\"\n"

static struct {
    char in[1 << 17];
    size_t have, skip; /* what has been read and isn't parsed; how much of a body is still to come */
    char used[201];
    int watched;
} *client[MOST];
static struct pollfd poll_of[MOST];
static int places = 1; /* of these in use, or once in use */
static char out[1 << 21];
static unsigned long long id;

static int begins(const char *line, const char *word) { return !strncmp(line, word, strlen(word)); }

/* Answer one line, without its end; `end` points behind what is to be sent before it. */
static char *answer(int number, const char *line, char *end) {
    if (begins(line, "put ")) {
        client[number]->skip = strtoul(strrchr(line, ' '), NULL, 10) + 2;
        return end + sprintf(end, "INSERTED %llu\r\n", ++id);
    }
    if (begins(line, "reserve")) return end + sprintf(end, "RESERVED %llu 11\r\nxxxxxxxxxxx\r\n", ++id);
    if (begins(line, "delete ")) return end + sprintf(end, "DELETED\r\n");
    if (begins(line, "release ")) return end + sprintf(end, "RELEASED\r\n");
    if (begins(line, "touch ")) return end + sprintf(end, "TOUCHED\r\n");
    if (begins(line, "use ")) {
        strncpy(client[number]->used, line + 4, 200);
        return end + sprintf(end, "USING %s\r\n", client[number]->used);
    }
    if (begins(line, "list-tube-used")) return end + sprintf(end, "USING %s\r\n", client[number]->used);
    if (begins(line, "watch ")) return end + sprintf(end, "WATCHING %d\r\n", ++client[number]->watched);
    if (begins(line, "ignore ")) return end + sprintf(end, "WATCHING %d\r\n", --client[number]->watched);
    if (begins(line, "stats-job ")) {
        char found[300];
        sprintf(found, JOB, strtoull(line + 10, NULL, 10));
        return end + sprintf(end, "OK %zu\r\n%s\r\n", strlen(found), found);
    }
    if (begins(line, "stats")) return end + sprintf(end, "OK %zu\r\n%s\r\n", strlen(STATS), STATS);
    return end + sprintf(end, "UNKNOWN_COMMAND\r\n");
}

/* Answer what has been read; returns whether the client is still there. */
static int serve(int number) {
    int sock = poll_of[number].fd;
    ssize_t got = recv(sock, client[number]->in + client[number]->have, sizeof client[0]->in - client[number]->have, 0);
    if (got <= 0) return 0;
    client[number]->have += got;
    char *at = client[number]->in, *last = at + client[number]->have, *end = out;
    while (at < last) {
        if (client[number]->skip) {
            size_t part = client[number]->skip < (size_t)(last - at) ? client[number]->skip : (size_t)(last - at);
            at += part;
            client[number]->skip -= part;
            continue;
        }
        char *stop = memchr(at, '\r', last - at);
        if (!stop || stop + 1 == last) break;
        *stop = 0;
        if (begins(at, "quit")) return 0;
        end = answer(number, at, end);
        at = stop + 2;
    }
    client[number]->have = last - at;
    memmove(client[number]->in, at, last - at);
    for (char *from = out; from < end;) {
        ssize_t taken = send(sock, from, end - from, MSG_NOSIGNAL);
        if (taken <= 0) return 0;
        from += taken;
    }
    return 1;
}

static void welcome(int listener) {
    int one = 1, sock = accept(listener, NULL, NULL), number = 1;
    while (number < places && poll_of[number].fd >= 0) number++;
    if (sock < 0 || number == MOST) {
        close(sock);
        return;
    }
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    client[number] = calloc(1, sizeof *client[0]);
    client[number]->watched = 1;
    strcpy(client[number]->used, "default");
    poll_of[number] = (struct pollfd){.fd = sock, .events = POLLIN};
    if (number == places) places++;
}

int main(void) {
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof place;
    poll_of[0] = (struct pollfd){.fd = socket(AF_INET, SOCK_STREAM, 0), .events = POLLIN};
    if (bind(poll_of[0].fd, (struct sockaddr *)&place, size) || listen(poll_of[0].fd, MOST)) return 1;
    getsockname(poll_of[0].fd, (struct sockaddr *)&place, &size);
    printf("%d\n", ntohs(place.sin_port));
    fflush(stdout);
    for (;;) {
        poll(poll_of, places, -1);
        if (poll_of[0].revents) welcome(poll_of[0].fd);
        for (int number = 1; number < places; number++)
            if (poll_of[number].fd >= 0 && poll_of[number].revents && !serve(number)) {
                close(poll_of[number].fd);
                free(client[number]);
                poll_of[number].fd = -1;
            }
    }
}
