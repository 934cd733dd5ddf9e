/* The floor: answers each request with itself. libmosquitto's own loop, TCP_NODELAY on.
 *
 * echo PORT REQUEST-FILTER RESULT-TOPIC
 */
#include <mosquitto.h>
#include <stdio.h>
#include <stdlib.h>

static const char *filter, *result;

static void on_connect(struct mosquitto *client, void *unused, int code) {
    (void)unused;
    if (code) exit(1);
    mosquitto_subscribe(client, NULL, filter, 1);
}

static void on_subscribe(struct mosquitto *client, void *unused, int id, int count, const int *granted) {
    (void)client, (void)unused, (void)id, (void)count, (void)granted;
    puts("ready");
    fflush(stdout);
}

static void on_message(struct mosquitto *client, void *unused, const struct mosquitto_message *message) {
    (void)unused;
    mosquitto_publish(client, NULL, result, message->payloadlen, message->payload, message->qos, false);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    filter = argv[2], result = argv[3];
    mosquitto_lib_init();
    struct mosquitto *client = mosquitto_new("c-echo", true, NULL);
    mosquitto_int_option(client, MOSQ_OPT_TCP_NODELAY, 1);
    mosquitto_connect_callback_set(client, on_connect);
    mosquitto_subscribe_callback_set(client, on_subscribe);
    mosquitto_message_callback_set(client, on_message);
    if (mosquitto_connect(client, "127.0.0.1", atoi(argv[1]), 60)) return 1;
    return mosquitto_loop_forever(client, -1, 1);
}
