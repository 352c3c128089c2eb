// The routes of the service, in one worker.
//
//   GET  /flags/NAME        the value, as text
//   PUT  /flags/NAME        sets it; ?deadline_ms= instead of the default
//   GET  /catalogue         the products, with ?price_max= those of that price at most
//   GET  /catalogue/NAME    one product, with its version as ETag
//   PUT  /catalogue/NAME    replaces it if it still has the version of If-Match, or adds it
//                           (If-None-Match: *)
//   GET  /health, /metrics
//
// Reads never wait for the log. A write waits for it until its deadline.
#pragma once

#include <httplib.h>

#include <functional>
#include <semaphore>

#include <whycache/cache.h>

#include "catalogue.h"
#include "follower.h"
#include "metrics.h"
#include "settings.h"

namespace service {

class Service {
 public:
  Service(whycache::Cache& cache, Metrics& metrics, const Follower& follower,
          const Settings& settings);

  // The service must exist as long as the server listens.
  void add_routes(httplib::Server& server);

 private:
  using Request = httplib::Request;
  using Response = httplib::Response;
  using Write =
      std::function<void(const Request&, Response&, const whycache::WriteOptions& options)>;

  void get_flag(const Request& request, Response& response) const;
  void put_flag(const Request& request, Response& response, const whycache::WriteOptions& options);
  void get_catalogue(const Request& request, Response& response);
  void get_product(const Request& request, Response& response);
  void put_product(const Request& request, Response& response,
                   const whycache::WriteOptions& options);
  void get_health(Response& response) const;
  void get_metrics(Response& response) const;

  // Returns a handler that runs `write` with the deadline of the request. Answers at once if too
  // many threads are writing: during an outage all of them wait, and none would be left to read.
  httplib::Server::Handler limited(Write write);
  std::chrono::milliseconds deadline_of(const Request& request) const;

  whycache::Cache& cache_;
  Metrics& metrics_;
  const Follower& follower_;
  const Settings& settings_;
  CatalogueReader catalogue_;
  std::counting_semaphore<> free_writes_;
};

}  // namespace service
