/* A load generator that costs next to nothing: one blocking socket, MQTT 3.1.1, many packets a read and one write.
 *
 * It keeps WINDOW requests without an answer (or sends at a fixed RATE), measures each one's time to its answer, and
 * reads what processor time the named processes took meanwhile. One line of JSON on stdout; with `out`, each latency
 * as a float32 of microseconds in a file.
 *
 * load port=1883 request=T result=T qos=1 window=64 seconds=0.5 warm=0.1 payload=FILE [rate=N] [topics=N] [pids=1,2]
 *      [out=FILE] [client=NAME] [first=1]
 *
 * The payload's first "00000000" becomes the request's number. An answer gives it back behind its first "id", or as
 * its first eight bytes. With topics=N the request topic's last five characters are a number below N. With first=1 it
 * only asks until there is an answer, and says at which second of the monotonic clock that came.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SLOTS (1u << 22) /* numbers that are told apart: more than are ever under way */
#define MAX_PIDS 512
#define PATIENCE_S 30 /* without any byte from the broker: something is broken */

static int sock, qos = 1;
static uint8_t *in, *out;
static size_t in_size = 1 << 20, in_have, out_size, out_have;
static uint64_t *sent_ns;
static float *latencies;
static size_t answers, kept, latency_room = 1 << 20, outstanding;
static uint64_t measured_from, measured_to;
static uint8_t *template_bytes;
static size_t template_size, topic_end, id_at, packet_at;
static long topics;
static uint32_t number;
static int until_it_is_ready; /* errors meanwhile are no answers */

static void fail(const char *what) {
    fprintf(stderr, "load: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static const char *option(int argc, char **argv, const char *name, const char *otherwise) {
    size_t length = strlen(name);
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], name, length) && argv[i][length] == '=') return argv[i] + length + 1;
    if (!otherwise) fail(name);
    return otherwise;
}

/* -- processor time of others ----------------------------------------------------------------------------------- */

static int pids[MAX_PIDS], pid_count;
static uint64_t used_before[MAX_PIDS], used_after[MAX_PIDS];

static uint64_t used_ns(int pid) {
    char path[64];
    uint64_t sum = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *directory = opendir(path);
    if (!directory) return 0;
    for (struct dirent *each; (each = readdir(directory));) {
        char file[400];
        unsigned long long used = 0;
        if (each->d_name[0] == '.') continue;
        snprintf(file, sizeof file, "%s/%s/schedstat", path, each->d_name);
        FILE *f = fopen(file, "r");
        if (f) {
            if (fscanf(f, "%llu", &used) == 1) sum += used;
            fclose(f);
        }
    }
    closedir(directory);
    return sum;
}

static void read_used(uint64_t *into) {
    for (int i = 0; i < pid_count; i++) into[i] = used_ns(pids[i]);
}

/* -- out -------------------------------------------------------------------------------------------------------- */

static void flush(void) {
    for (size_t at = 0; at < out_have;) {
        ssize_t n = send(sock, out + at, out_have - at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) fail("send");
        at += n;
    }
    out_have = 0;
}

static uint8_t *room(size_t size) {
    if (out_have + size > out_size) flush();
    if (size > out_size) out = realloc(out, out_size = size);
    uint8_t *at = out + out_have;
    out_have += size;
    return at;
}

static size_t put_length(uint8_t *at, size_t value) {
    size_t n = 0;
    do {
        uint8_t byte = value & 127;
        value >>= 7;
        at[n++] = byte | (value ? 128 : 0);
    } while (value);
    return n;
}

static size_t put_text(uint8_t *at, const char *text) {
    size_t length = strlen(text);
    at[0] = length >> 8, at[1] = length & 255;
    memcpy(at + 2, text, length);
    return length + 2;
}

static void make_template(const char *topic, const char *file) {
    FILE *f = fopen(file, "rb");
    if (!f) fail(file);
    fseek(f, 0, SEEK_END);
    size_t size = ftell(f), body = 2 + strlen(topic) + (qos ? 2 : 0) + size;
    rewind(f);
    uint8_t *p = template_bytes = malloc(body + 5);
    *p++ = 0x30 | (qos << 1);
    p += put_length(p, body);
    p += put_text(p, topic);
    topic_end = p - template_bytes;
    packet_at = topic_end;
    if (qos) p += 2;
    if (fread(p, 1, size, f) != size) fail(file);
    fclose(f);
    uint8_t *found = memmem(p, size, "00000000", 8);
    if (!found) fail("the payload holds no 00000000");
    id_at = found - template_bytes;
    template_size = p + size - template_bytes;
}

static void put_digits(uint8_t *at, int count, uint32_t value) {
    for (int i = count - 1; i >= 0; i--, value /= 10) at[i] = '0' + value % 10;
}

static void request(uint64_t when) {
    uint8_t *at = room(template_size);
    number = (number + 1) % SLOTS;
    memcpy(at, template_bytes, template_size);
    if (topics) put_digits(at + topic_end - 5, 5, number % topics);
    if (qos) {
        uint16_t packet_id = number % 65535 + 1;
        at[packet_at] = packet_id >> 8, at[packet_at + 1] = packet_id & 255;
    }
    put_digits(at + id_at, 8, number);
    sent_ns[number] = when;
    outstanding++;
}

/* -- in --------------------------------------------------------------------------------------------------------- */

static long number_in(const uint8_t *data, size_t size) {
    size_t near = size < 512 ? size : 512;
    const uint8_t *at = memmem(data, near, "\"id\"", 4), *end = data + near;
    if (at)
        for (at += 4; at < end && (*at < '0' || *at > '9'); at++) {}
    else
        at = data;
    long value = 0;
    if (at + 8 > end) return -1;
    for (int i = 0; i < 8; i++) {
        if (at[i] < '0' || at[i] > '9') return -1;
        value = value * 10 + at[i] - '0';
    }
    return value;
}

static void answer(const uint8_t *payload, size_t size) {
    long n = number_in(payload, size);
    if ((n < 0 || n >= SLOTS) && until_it_is_ready) return;
    if (n < 0 || n >= SLOTS) {
        fprintf(stderr, "load: an answer without a number: %.*s\n", (int)(size < 300 ? size : 300), payload);
        exit(1);
    }
    if (!sent_ns[n]) return; /* a second delivery */
    uint64_t now = now_ns();
    if (now >= measured_from && now < measured_to) {
        answers++;
        if (sent_ns[n] >= measured_from) {
            if (kept == latency_room) latencies = realloc(latencies, (latency_room *= 2) * sizeof *latencies);
            latencies[kept++] = (now - sent_ns[n]) / 1e3f;
        }
    }
    sent_ns[n] = 0;
    outstanding--;
}

static void take(uint8_t first, const uint8_t *body, size_t size) {
    if ((first & 0xf0) != 0x30) return;
    size_t at = 2 + (body[0] << 8 | body[1]);
    if (first & 0x06) {
        uint8_t *ack = room(4);
        ack[0] = 0x40, ack[1] = 2, ack[2] = body[at], ack[3] = body[at + 1];
        at += 2;
    }
    answer(body + at, size - at);
}

static void quickack(void) {
    int one = 1;
    setsockopt(sock, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
}

/* Reads what is there, waiting for the first byte, and takes all whole packets; returns the first one's type. */
static int receive(void) {
    int type = 0;
    if (in_have == in_size) in = realloc(in, in_size *= 2);
    ssize_t n = recv(sock, in + in_have, in_size - in_have, 0);
    if (n <= 0) fail(n ? "no answer" : "the broker closed the connection");
    quickack();
    in_have += n;
    size_t at = 0;
    while (in_have - at >= 2) {
        size_t length = 0, head = 1;
        int shift = 0, whole = 0;
        while (at + head < in_have && head < 5) {
            uint8_t byte = in[at + head++];
            length |= (size_t)(byte & 127) << shift;
            shift += 7;
            if (byte < 128) {
                whole = 1;
                break;
            }
        }
        if (!whole || in_have - at - head < length) break;
        if (!type) type = in[at] >> 4;
        take(in[at], in + at + head, length);
        at += head + length;
    }
    memmove(in, in + at, in_have - at);
    in_have -= at;
    return type;
}

/* -- the run ---------------------------------------------------------------------------------------------------- */

static void open_session(int port, const char *client, const char *result) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timeval patience = {.tv_sec = PATIENCE_S};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(sock, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    quickack();
    uint8_t *p = room(14 + strlen(client));
    *p++ = 0x10;
    p += put_length(p, 12 + strlen(client));
    memcpy(p, "\0\4MQTT\4\2\0\0", 10);
    put_text(p + 10, client);
    flush();
    while (receive() != 2) {}
    p = room(7 + strlen(result));
    *p++ = 0x82;
    p += put_length(p, 5 + strlen(result));
    p[0] = 0, p[1] = 1;
    p[2 + put_text(p + 2, result)] = qos;
    flush();
    while (receive() != 9) {}
}

static void closed_loop(size_t window) {
    for (int measuring = 0;;) {
        uint64_t now = now_ns();
        if (!measuring && now >= measured_from) measuring = 1, read_used(used_before);
        if (now >= measured_to) break;
        while (outstanding < window) request(now_ns());
        flush();
        receive();
    }
}

static void open_loop(double rate, uint64_t start) {
    uint64_t gap = 1e9 / rate, next = start;
    struct pollfd waiting = {.fd = sock, .events = POLLIN};
    for (int measuring = 0;;) {
        uint64_t now = now_ns();
        if (!measuring && now >= measured_from) measuring = 1, read_used(used_before);
        if (now >= measured_to) break;
        for (; next <= now; next += gap) request(next);
        flush();
        uint64_t left = next - now_ns();
        if ((int64_t)left < 0) left = 0;
        struct timespec until = {.tv_sec = left / 1000000000u, .tv_nsec = left % 1000000000u};
        if (ppoll(&waiting, 1, &until, NULL) > 0) receive();
    }
}

/* Asks every five milliseconds until there is an answer, and says when it came. */
static void until_first(void) {
    struct pollfd waiting = {.fd = sock, .events = POLLIN};
    measured_to = UINT64_MAX;
    until_it_is_ready = 1;
    puts("listening");
    fflush(stdout);
    while (!answers) {
        request(now_ns());
        flush();
        struct timespec until = {.tv_nsec = 5000000};
        if (ppoll(&waiting, 1, &until, NULL) > 0) receive();
    }
    printf("%.6f\n", now_ns() / 1e9);
}

static void drain(void) {
    uint64_t end = now_ns() + 3000000000u;
    struct pollfd waiting = {.fd = sock, .events = POLLIN};
    flush();
    while (outstanding && now_ns() < end) {
        if (poll(&waiting, 1, 100) > 0) receive();
        flush();
    }
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void report(const char *file, double seconds) {
    if (*file) {
        FILE *f = fopen(file, "wb");
        if (!f || fwrite(latencies, sizeof *latencies, kept, f) != kept) fail(file);
        fclose(f);
    }
    qsort(latencies, kept, sizeof *latencies, by_size);
    printf("{\"answers\": %zu, \"seconds\": %.6f, \"unanswered\": %zu", answers, seconds, outstanding);
    if (kept)
        printf(", \"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"max_us\": %.2f", latencies[kept / 2],
               latencies[(size_t)(kept * 0.99)], latencies[(size_t)(kept * 0.999)], latencies[kept - 1]);
    printf(", \"cpu_s\": {");
    for (int i = 0; i < pid_count; i++)
        printf("%s\"%d\": %.6f", i ? ", " : "", pids[i], (used_after[i] - used_before[i]) / 1e9);
    printf("}}\n");
}

int main(int argc, char **argv) {
    double seconds = atof(option(argc, argv, "seconds", "1")), warm = atof(option(argc, argv, "warm", "0.1"));
    double rate = atof(option(argc, argv, "rate", "0"));
    char name[64];
    snprintf(name, sizeof name, "load-%d", getpid());
    qos = atoi(option(argc, argv, "qos", "1"));
    topics = atol(option(argc, argv, "topics", "0"));
    in = malloc(in_size), out = malloc(out_size = 1 << 20);
    sent_ns = calloc(SLOTS, sizeof *sent_ns), latencies = malloc(latency_room * sizeof *latencies);
    for (const char *at = option(argc, argv, "pids", ""); *at && pid_count < MAX_PIDS;) {
        char *end;
        pids[pid_count++] = strtol(at, &end, 10);
        at = *end ? end + 1 : end;
    }
    make_template(option(argc, argv, "request", NULL), option(argc, argv, "payload", NULL));
    open_session(atoi(option(argc, argv, "port", NULL)), option(argc, argv, "client", name),
                 option(argc, argv, "result", NULL));
    if (atoi(option(argc, argv, "first", "0"))) {
        until_first();
        return 0;
    }
    uint64_t start = now_ns();
    measured_from = start + warm * 1e9, measured_to = measured_from + seconds * 1e9;
    if (rate > 0)
        open_loop(rate, start);
    else
        closed_loop(atol(option(argc, argv, "window", "1")));
    uint64_t ended = now_ns();
    read_used(used_after);
    drain();
    report(option(argc, argv, "out", ""), (ended - measured_from) / 1e9);
    return 0;
}
