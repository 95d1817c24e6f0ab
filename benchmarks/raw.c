/* The raw limit: a tight, pipelined client of beanstalkd, which does nothing that a client library does.

   raw PLACE WORKLOAD COUNT DEPTH SIZE TUBE GATHER PAUSE
       PLACE     a port on the loopback, or the path of a unix socket
       WORKLOAD  put: COUNT jobs with bodies of SIZE bytes; work: reserve and delete COUNT jobs
       DEPTH     commands in flight; each reply is followed by a new command, all those of one read in one send
       GATHER    how many new commands wait for each other to share a send; 1: none waits
       PAUSE     microseconds of sleep before each read: replies gather, and the server need not wake this process for each

   raw calls
       says how many microseconds of CPU a system call takes that sends or reads 100 bytes, on the loopback

   Prints one line of JSON: the seconds that it took, and the seconds of CPU. Replies other than those wished for end it. */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int sock;
static char *out; /* what is to be sent */
static size_t filled;
static char in[65536];
static size_t have, at; /* what has been read, and how far it is parsed */
static long gather, pause_us;

static void die(const char *what) {
    fprintf(stderr, "raw: %s\n", what);
    exit(1);
}

static void dial(const char *place) {
    if (place[0] == '/') {
        struct sockaddr_un path = {.sun_family = AF_UNIX};
        strncpy(path.sun_path, place, sizeof path.sun_path - 1);
        sock = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(sock, (struct sockaddr *)&path, sizeof path)) die("connect");
    } else {
        int one = 1;
        struct sockaddr_in port = {.sin_family = AF_INET, .sin_port = htons(atoi(place))};
        port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        sock = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(sock, (struct sockaddr *)&port, sizeof port)) die("connect");
        setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
}

static void flush(void) {
    for (size_t sent = 0; sent < filled;) {
        ssize_t taken = send(sock, out + sent, filled - sent, 0);
        if (taken <= 0) die("send");
        sent += taken;
    }
    filled = 0;
}

/* Read more behind what isn't parsed yet. */
static void more(void) {
    memmove(in, in + at, have - at);
    have -= at;
    at = 0;
    if (pause_us) usleep(pause_us);
    ssize_t got = recv(sock, in + have, sizeof in - have, 0);
    if (got <= 0) die("recv");
    have += got;
}

/* Find the end of the next line, or say that it isn't there yet. */
static char *line(void) {
    char *end = memchr(in + at, '\n', have - at);
    return end;
}

static void expect(const char *word) {
    while (!line()) more();
    if (strncmp(in + at, word, strlen(word))) die("unexpected reply");
    at = line() + 1 - in;
}

static void put(long count, long depth, const char *job, size_t size) {
    long sent = 0, answered = 0;
    while (answered < count) {
        for (int room = sent - answered <= depth - gather; room && sent < count && sent - answered < depth; sent++) {
            memcpy(out + filled, job, size);
            filled += size;
        }
        flush();
        more();
        for (char *end; (end = line()); at = end + 1 - in, answered++)
            if (strncmp(in + at, "INSERTED ", 9)) die("unexpected reply");
    }
}

static void work(long count, long depth) {
    static const char reserve[] = "reserve-with-timeout 0\r\n";
    long asked = 0, deleted = 0, due, held = 0; /* due: sent and not answered; held: not sent */
    for (; asked < depth && asked < count; asked++) filled += sprintf(out + filled, reserve);
    flush();
    due = asked;
    while (deleted < count) {
        more();
        for (char *end; (end = line());) {
            if (!strncmp(in + at, "RESERVED ", 9)) {
                char *rest;
                unsigned long long id = strtoull(in + at + 9, &rest, 10);
                size_t whole = end + 1 - (in + at) + strtoul(rest, NULL, 10) + 2;
                if (have - at < whole) break;
                at += whole;
                due--, held++;
                filled += sprintf(out + filled, "delete %llu\r\n", id);
            } else if (!strncmp(in + at, "DELETED", 7)) {
                at = end + 1 - in;
                deleted++, due--;
                if (asked < count) {
                    filled += sprintf(out + filled, reserve);
                    asked++, held++;
                }
            } else
                die("unexpected reply");
        }
        if (due <= depth - gather) {
            flush();
            due += held;
            held = 0;
        }
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static double cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Send and read within this process: no other has to be waked, so it is the calls alone that take time. */
static void calls(void) {
    char data[100] = "";
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof place;
    char port[10];
    int listener = socket(AF_INET, SOCK_STREAM, 0), count = 100000;
    if (bind(listener, (struct sockaddr *)&place, size) || listen(listener, 1)) die("listen");
    getsockname(listener, (struct sockaddr *)&place, &size);
    sprintf(port, "%d", ntohs(place.sin_port));
    dial(port);
    int other = accept(listener, NULL, NULL);
    double best = 1;
    for (int round = 0; round < 5; round++) {
        double began = cpu();
        for (int number = 0; number < count / 5; number++)
            if (send(sock, data, sizeof data, 0) != sizeof data || recv(other, data, sizeof data, MSG_WAITALL) <= 0)
                die("calls");
        double each = (cpu() - began) / (count / 5) / 2;
        if (each < best) best = each;
    }
    printf("%.3f\n", best * 1e6);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "calls")) {
        calls();
        return 0;
    }
    if (argc != 9) die("usage: raw PLACE WORKLOAD COUNT DEPTH SIZE TUBE GATHER PAUSE");
    long count = atol(argv[3]), depth = atol(argv[4]), size = atol(argv[5]);
    const char *tube = argv[6];
    gather = atol(argv[7]), pause_us = atol(argv[8]);
    char *job = malloc(size + 100);
    int head = sprintf(job, "put 1024 0 60 %ld\r\n", size);
    memset(job + head, 'x', size);
    memcpy(job + head + size, "\r\n", 2);
    out = malloc((depth + 1) * (head + size + 2) + 2 * depth * 40 + sizeof in);

    dial(argv[1]);
    filled = sprintf(out, "use %s\r\nwatch %s\r\nignore default\r\n", tube, tube);
    flush();
    expect("USING");
    expect("WATCHING 2");
    expect("WATCHING 1");
    double began = now(), used = cpu();
    if (!strcmp(argv[2], "put"))
        put(count, depth, job, head + size + 2);
    else
        work(count, depth);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f}\n", now() - began, cpu() - used);
    return 0;
}
